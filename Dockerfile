# An image with the command `mmpareto`.
#
#   docker build -t mmpareto .
#   docker run --rm -v "$PWD:/work" mmpareto train --epochs 2
#
# With a GPU, on an image that has PyTorch for it:
#
#   docker build --build-arg BASE=pytorch/pytorch:2.11.0-cuda12.8-cudnn9-runtime -t mmpareto .
#   docker run --rm --gpus all -v "$PWD:/work" mmpareto train
#
# PIP_OPTIONS are further options of pip, such as the index of PyTorch's builds for the CPU alone, which are far smaller.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG PIP_OPTIONS=""
ENV PYTHONUNBUFFERED=1
COPY pyproject.toml README.md LICENSE /source/
COPY code/mmpareto /source/code/mmpareto
RUN pip install --no-cache-dir ${PIP_OPTIONS} /source && rm -rf /source
WORKDIR /work
ENTRYPOINT ["mmpareto"]
CMD ["--help"]
