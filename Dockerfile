# syntax=docker/dockerfile:1
# An image with forkserve, to build the image of an app from: see docs/deploy/containers.md.

FROM python:3.13-slim AS build
# The compiler of the base, whatever its version: nothing of it stays.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir /wheels/*.whl \
    && useradd --system --uid 1000 --no-create-home app
WORKDIR /srv/app
# With PORT, which platforms set, the server listens on 0.0.0.0:$PORT.
ENV PORT=8000 PYTHONUNBUFFERED=1
EXPOSE 8000
USER 1000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["forkserve", "ctl", "status"]
# In this form the master is process 1, gets SIGTERM and reaps orphaned processes.
ENTRYPOINT ["forkserve"]
CMD ["--help"]
