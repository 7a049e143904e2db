# ESNet on a GTX 10xx (Pascal, SM 6.1) with the last TensorRT that supports it; see docs/gtx-1080-ti.md. From the root of a checkout:
#   docker build -f scripts/docker/gtx10xx.Dockerfile -t esnet-gtx10xx .
#   docker run --rm --gpus all esnet-gtx10xx esnet-doctor
#   docker run --rm --gpus all -v "$PWD/gpu-check:/out" esnet-gtx10xx
# The host needs a driver from R525 to R580 and the NVIDIA Container Toolkit. The build downloads more than 2 GB.
FROM python:3.11-slim-bookworm

# OpenCV needs these two.
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*

WORKDIR /esnet
COPY requirements-gtx10xx.txt .
# torch first and for the CPU: its default wheel brings another cuDNN.
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir -r requirements-gtx10xx.txt 'pytest>=8'
COPY . .
RUN pip install --no-cache-dir '.[cpu,export]'

ENV PACKAGES=/usr/local/lib/python3.11/site-packages
ENV LD_LIBRARY_PATH=$PACKAGES/tensorrt_libs:$PACKAGES/nvidia/cudnn/lib:$PACKAGES/nvidia/cublas/lib:$PACKAGES/nvidia/cuda_runtime/lib \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["sh", "scripts/gpu_check.sh", "--out", "/out", "-k", "not test_gpu_onnxruntime"]
