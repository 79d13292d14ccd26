# One program, two images: `cpu` for every part, `gpu` for workers that have one. The command decides which part it is.
FROM python:3.11-slim AS cpu-libraries
RUN python -m venv /opt/lesion-screen
COPY requirements.lock ./
RUN /opt/lesion-screen/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements.lock

FROM python:3.11-slim AS gpu-libraries
RUN python -m venv /opt/lesion-screen
COPY requirements-gpu.lock ./
RUN /opt/lesion-screen/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements-gpu.lock

FROM python:3.11-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE requirements-dev.lock ./
COPY db ./db
COPY model ./model
COPY producer ./producer
COPY worker ./worker
# What builds the wheel is pinned as well; constraints take no hashes for a folder.
RUN grep -oE '^[A-Za-z0-9._-]+==[^ ;]+' requirements-dev.lock | sort -u -t= -k1,1 > /tmp/pins \
 && PIP_CONSTRAINT=/tmp/pins pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim AS base
ENV PATH=/opt/lesion-screen/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TF_CPP_MIN_LOG_LEVEL=3
ENV LESION_SCREEN_HOME=/var/lib/lesion-screen
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/lesion-screen screen
WORKDIR /var/lib/lesion-screen
CMD ["lesion-screen", "--help"]

FROM base AS gpu
COPY --from=gpu-libraries /opt/lesion-screen /opt/lesion-screen
RUN --mount=from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
USER 10001

FROM base AS cpu
COPY --from=cpu-libraries /opt/lesion-screen /opt/lesion-screen
RUN --mount=from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
USER 10001
