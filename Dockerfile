# syntax=docker/dockerfile:1
# torchnpy for use: a wheel of dist/ (`make wheel`), no compiler, not root.
#
#   docker build -t torchnpy .
#   docker build -t torchnpy --build-arg PYTHON=3.11 --build-arg TORCH=2.13.0 \
#     --build-arg TORCH_INDEX_URL=https://pypi.org/simple .        (with CUDA)
#
# dist/ holds a wheel for that Python, and the wheel a pair of libraries for that minor of torch.
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

RUN apt-get update \
  && apt-get install -y --no-install-recommends ca-certificates \
  && rm -rf /var/lib/apt/lists/*

ARG TORCH=2.14.1
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX_URL}" "torch==${TORCH}"

# First the wheel alone, from the folder alone; then what its command line needs.
RUN --mount=type=bind,source=dist,target=/dist \
  pip install --no-cache-dir --no-index --no-deps --find-links /dist torchnpy \
  && pip install --no-cache-dir "torchnpy[cli]"

RUN useradd --create-home --uid 1000 npy
USER 1000
WORKDIR /home/npy
RUN torchnpy --version
CMD ["python"]
