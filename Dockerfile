# One image for every part: the command decides which.
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 TF_CPP_MIN_LOG_LEVEL=3
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/lesion-screen screen
WORKDIR /opt/lesion-screen
COPY requirements.lock ./
RUN pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY db ./db
COPY model ./model
COPY producer ./producer
COPY worker ./worker
RUN pip install --no-deps .
USER screen
ENV LESION_SCREEN_HOME=/var/lib/lesion-screen
CMD ["lesion-screen", "--help"]
