"""Paths of objects in a store, such as `gs://bucket/run/a.txt`, with the methods of `pathlib.Path`.

In: a URL of Google Cloud Storage or S3. Out: a path that reads, writes and lists objects. A folder
exists as long as an object is below it, so `mkdir` does nothing. Writing an object is atomic. The
module does not know what the objects hold. Only this module imports etils and fsspec. fsspec's file
systems repeat a request that fails in the store, for example with status 503.
"""

import errno
import fnmatch
import functools
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import IO, Any, cast

from etils import epath
from etils.epath.gpath import PosixGPath

from jaxcpt.errors import UserError

SCHEMES = ("gs", "s3")
READ_BYTES = 1 << 23
"""Bytes of one request when a file is read from its start to its end."""
SLOW_SECONDS = 10
CREDENTIALS = {
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run aws configure",
}
_NO_CREDENTIALS = ("NoCredentialsError", "GoogleAuthError", "DefaultCredentialsError")


@functools.cache
def open_store(scheme: str) -> Any:
    """The fsspec file system of `gs` or `s3`. Raises UserError if its library is missing."""
    # These libraries log errors that they also raise, and warnings about services that are absent.
    for name in ("gcsfs", "google.auth", "google.api_core", "s3fs", "aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"google\.auth|google\.api_core|gcsfs|s3fs")
    if host := os.environ.get("STORAGE_EMULATOR_HOST"):  # for gcsfs; tensorstore needs two others
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", host)
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "emulator")
    # Without this, gcsfs asks another service for the bucket's layout at every request.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec

        # Listings are not cached, because other machines write to the same bucket.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise UserError(f"{scheme}://: needs {error.name}: pip install 'jaxcpt[cloud]'") from None


@functools.cache
def check_bucket(scheme: str, bucket: str) -> None:
    """Raises UserError if the bucket does not exist or may not be listed."""
    url = f"{scheme}://{bucket}"
    with _explain(url):
        try:
            if scheme == "gs":  # `info` would need a permission that writers of objects lack
                open_store(scheme).ls(url, detail=False, max_results=1)
            else:
                open_store(scheme).info(url)
        except FileNotFoundError:
            raise UserError(f"{url}: no such bucket; make it, or correct its name") from None


def prepare_tensorstore(folder: PurePath) -> None:
    """Lets tensorstore, by which Orbax writes arrays, look for its credentials silently.

    Otherwise its first request prints to stderr where it found them or did not find them. Raises
    UserError for S3, because Orbax cannot write there.
    """
    if not str(folder).startswith("gs://"):
        raise UserError(
            f"{folder}: checkpoints cannot be kept on S3; choose a local folder or gs://BUCKET/NAME"
        )
    bucket = folder.parts[2]
    check_bucket("gs", bucket)
    _find_credentials(bucket)


@functools.cache
def _find_credentials(bucket: str) -> None:
    import tensorstore

    error_stream = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        store = tensorstore.KvStore.open({"driver": "gcs", "bucket": bucket}).result()
        store.read(".jaxcpt").result()
    except Exception as error:  # tensorstore raises many kinds of errors
        raise UserError(f"gs://{bucket}: {_describe(error, 'gs:')}") from error
    finally:
        os.dup2(error_stream, 2)
        os.close(error_stream)


@contextmanager
def _explain(url: str) -> Iterator[None]:
    """A context that turns errors of the stores' libraries into those of pathlib, or a UserError.

    The libraries repeat a failed request silently, so after SLOW_SECONDS a line says that the
    request is not done.
    """
    slow = threading.Timer(SLOW_SECONDS, _tell_slow, [url])
    slow.daemon = True
    slow.start()
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", url) from None
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "File exists", url) from None
    except Exception as error:  # from gcsfs, aiohttp, google.auth, s3fs or botocore
        raise UserError(f"{url}: {_describe(error, url)}") from error
    finally:
        slow.cancel()


def _tell_slow(url: str) -> None:
    host = os.environ.get("STORAGE_EMULATOR_HOST") or os.environ.get("AWS_ENDPOINT_URL")
    where = f"the store at {host}" if host else "the store"
    print(
        f"{url}: a request to {where} is not done after {SLOW_SECONDS} s; still trying, for some "
        "minutes",
        file=sys.stderr,
        flush=True,
    )


def _describe(error: Exception, url: str) -> str:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    how = CREDENTIALS[url.partition(":")[0]]
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & set(_NO_CREDENTIALS) or getattr(error, "code", None) in (401, "401"):
        return f"no valid credentials; {how} ({text})"
    if isinstance(error, PermissionError) or "forbidden" in text.lower():
        return f"no permission; give this account the right to read, write and list ({text})"
    return f"the store failed: {text}"


@epath.register_path_cls([f"{scheme}://" for scheme in SCHEMES])
class ObjectPath(PosixGPath):
    """A `pathlib.Path` of an object or of a folder of objects. Orbax accepts it as an epath."""

    @property
    def _url(self) -> str:
        return os.fspath(self)

    @property
    def _scheme(self) -> str:
        return self._url.partition(":")[0]

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of the file system with this path."""
        with _explain(self._url):
            return getattr(open_store(self._scheme), method)(self._url, *arguments, **options)

    def _find(self) -> dict[str, Any] | None:
        """The store's record of the object or folder; None if it does not exist. Raises UserError
        if the bucket does not exist."""
        try:
            return self._ask("info")
        except FileNotFoundError:
            check_bucket(self._scheme, self.parts[2])
            return None

    def exists(self) -> bool:
        return self._find() is not None

    def is_file(self) -> bool:
        return (found := self._find()) is not None and found["type"] == "file"

    def is_dir(self) -> bool:
        return (found := self._find()) is not None and found["type"] == "directory"

    def is_symlink(self) -> bool:
        return False

    def resolve(self, strict: bool = False) -> "ObjectPath":
        """Returns itself, because a URL has no `..` and no links."""
        return self

    absolute = expanduser = resolve

    def stat(self) -> "ObjectStat":  # type: ignore[override]
        return ObjectStat(self._ask("info"))

    def iterdir(self) -> Iterator["ObjectPath"]:
        try:
            names = [name.rstrip("/").rpartition("/")[2] for name in self._ask("ls", detail=False)]
        except FileNotFoundError:
            return
        # Some tools mark a folder by an object with the folder's name. Leave it out.
        yield from (self / name for name in sorted(set(names) - {self.name}))

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        first, _, rest = pattern.partition("/")
        for path in self.iterdir():
            if fnmatch.fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else [path]

    def rglob(self, pattern: str) -> Iterator["ObjectPath"]:
        """The objects below this folder. Folders are left out, because they are not objects."""
        for path in self.list_files():
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def list_files(self) -> dict["ObjectPath", "ObjectStat"]:
        """All objects below, with sizes and dates. One request lists a thousand of them."""
        found = self._ask("find", detail=True)
        return {
            ObjectPath(f"{self._scheme}://{name}"): ObjectStat(found[name])
            for name in sorted(found)
        }

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        if not exist_ok and self.exists():
            raise FileExistsError(errno.EEXIST, "File exists", self._url)

    def rmdir(self) -> None:
        """Does nothing: a folder disappears with its last object."""

    def rmtree(self, missing_ok: bool = False) -> None:
        try:
            self._ask("rm", recursive=True)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._ask("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: Any) -> "ObjectPath":
        """Copies to `target` and deletes here. The objects of a folder are moved one by one."""
        is_folder = self.is_dir()
        self._ask("copy", os.fspath(target), recursive=is_folder)
        self._ask("rm", recursive=is_folder)
        return ObjectPath(target)

    replace = rename  # type: ignore[assignment]

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        if not (exist_ok and self.exists()):
            self.put(b"", exclusive=not exist_ok)

    def read_bytes(self) -> bytes:
        return self._ask("cat_file")

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    def read_range(self, start: int, end: int) -> bytes:
        return self._ask("cat_file", start=start, end=end)

    def write_bytes(self, data: bytes) -> int:  # type: ignore[override]
        self.put(data)
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def put(self, content: bytes, exclusive: bool = False) -> None:
        """Writes the whole object. exclusive: raise FileExistsError if the object exists."""
        if exclusive and self.exists():  # S3-like stores and emulators may not check it
            raise FileExistsError(errno.EEXIST, "File exists", self._url)
        try:
            self._ask("pipe_file", content, mode="create" if exclusive else "overwrite")
        except FileNotFoundError:
            raise UserError(f"{self._url}: no such bucket; make it, or correct its name") from None

    def upload(self, file: PurePath) -> None:
        """Uploads a local file as this object."""
        with _explain(self._url):
            open_store(self._scheme).put_file(os.fspath(file), self._url)

    def download(self, file: PurePath) -> None:
        """Downloads the object into a local file."""
        self._ask("get_file", os.fspath(file))

    def open(self, mode: str = "r", **options: Any) -> IO[Any]:  # type: ignore[override]
        """Opens the object like `pathlib`, but without the modes `a` and `+`.

        An object cannot be changed in part. Written bytes are held in memory, and they become the
        object when the file is closed.
        """
        kind = mode.replace("b", "").replace("t", "")
        if kind not in ("r", "w", "x"):
            raise UserError(f"{self._url}: an object cannot be opened in the mode '{mode}'")
        file = (
            io.BufferedReader(_Reader(self), READ_BYTES)
            if kind == "r"
            else _Writer(self, exclusive=kind == "x")
        )
        text = {k: v for k, v in options.items() if k in ("encoding", "errors", "newline")}
        text["encoding"] = text.get("encoding") or "utf-8"
        return cast(IO[Any], file if "b" in mode else io.TextIOWrapper(file, **text))


class ObjectStat:
    """Size and date of an object, under the names of `os.stat_result` and of epath."""

    def __init__(self, info: dict[str, Any]) -> None:
        date = info.get("mtime") or info.get("LastModified")
        self.st_size = self.length = int(info.get("size") or 0)
        self.st_mtime = 0.0 if date is None else date.timestamp()
        self.mtime = int(self.st_mtime)
        self.is_directory = info["type"] == "directory"
        self.owner = self.group = self.mode = None


class _Reader(io.RawIOBase):
    """An object as a seekable stream of bytes."""

    def __init__(self, path: ObjectPath) -> None:
        self._path, self._at = path, 0
        self._size = path.stat().st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        content = self._path.read_range(self._at, end)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


class _Writer(io.BytesIO):
    """A file in memory that becomes an object when it is closed, unless its `with` block fails."""

    def __init__(self, path: ObjectPath, exclusive: bool) -> None:
        super().__init__()
        self._path, self._exclusive = path, exclusive

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            super().close()
        self.close()

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self._path.put(content, self._exclusive)
