#!/usr/bin/env bash
# Builds the wheel, installs it into a new virtual environment, and runs the README's commands on
# small data from a folder outside the clone. It fails if the wheel needs anything of the clone.
#
#     tools/check_wheel.sh [SITE_PACKAGES]
#
# SITE_PACKAGES: where the libraries of the extra `mining` are installed. Without it, mine-text and
# mine-code are left out.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
extras=${1:-}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv venv
pip wheel --quiet --no-deps --wheel-dir "$work" "$root"
unzip -l jaxcpt-*.whl jaxcpt/py.typed >"$work/listed"
"$work/venv/bin/pip" install --quiet jaxcpt-*.whl
if [ -n "$extras" ]; then
    # A path file adds the libraries, but it does not read the path file of an editable jaxcpt there.
    echo "$extras" >"$(echo "$work"/venv/lib/python*/site-packages)/extras.pth"
fi

mkdir empty code text
cp "$root/experiments/quickstart.py" empty/
cp "$root"/jaxcpt/*.py code/
cp "$root"/docs/*.md text/
cd empty
export PATH="$work/venv/bin:$PATH" JAX_PLATFORMS=cpu
run() {
    printf '  %3ss  %s\n' "$SECONDS" "jaxcpt $*"
    jaxcpt "$@" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
}
run --help
run --version
run train --experiment quickstart.py --smoke --set baseline=None --run-dir run
run search --run-dir run "parse a date"
run evaluate --run-dir run
printf '{"_id": "a", "text": "one text"}\n{"_id": "b", "text": "another text"}\n' >texts.jsonl
run embed --run-dir run --input texts.jsonl --output vectors --side y
run vectors --input vectors --output vectors.npy
run search --run-dir run --vectors vectors "one text"
run report --run-dir run
run plan --experiment quickstart.py --topology cpu:1
run train-tokenizer --pairs run/pairs/train.jsonl --vocabulary 400 --output t.model
run tokenize-pairs --pairs run/pairs/train.jsonl --tokenizer t.model --output ids
if [ -n "$extras" ]; then
    run mine-text --input ../text --output data/text --workers 1
    run mine-code --input ../code --output data/code --workers 1
fi
