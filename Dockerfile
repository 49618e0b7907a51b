# The service with its kernels compiled: a container is ready without compiling anything.
#
#   docker build -t otel-anomaly .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#       --stop-timeout 40 -v anomaly:/data \
#       -p 127.0.0.1:4317:4317 -p 127.0.0.1:4318:4318 -p 127.0.0.1:9464:9464 otel-anomaly
#
# Only /data is written to. No shell is called, by the service or by its health check. Give it
# 40 s to stop (without --stop-timeout: `docker stop -t 40`): it delivers what it holds, for up to
# 20 s by default, and all else of the stop may take 15 s.

# By digest, so that the base that was tested is the one that runs; what is installed on it is of
# the day. The tag is for people. A newer one: `docker buildx imagetools inspect python:3.12-slim`.
ARG BASE=python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY otel_anomaly ./otel_anomaly
RUN python -m venv /opt/otel-anomaly \
    && /opt/otel-anomaly/bin/pip install --no-cache-dir --disable-pip-version-check . \
    && /opt/otel-anomaly/bin/pip uninstall --yes pip

# Machine code is kept per processor. For `generic` it runs on every one of the image's
# architecture; the same name must be set when the service runs, or it compiles anew.
ENV NUMBA_CPU_NAME=generic NUMBA_CACHE_DIR=/var/cache/otel-anomaly
# The mode is told, or it is the builder's to say: another user reads the folder.
RUN install -d -m 0755 /var/cache/otel-anomaly \
    && /opt/otel-anomaly/bin/python -m otel_anomaly.warm

FROM ${BASE}
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin anomaly \
    && install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /opt/otel-anomaly /opt/otel-anomaly
COPY --from=build /var/cache/otel-anomaly /var/cache/otel-anomaly

ENV PATH=/opt/otel-anomaly/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CPU_NAME=generic \
    NUMBA_CACHE_DIR=/var/cache/otel-anomaly \
    OTEL_ANOMALY_DATA=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 4317 4318 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["otel-anomaly", "health"]

# In a container the doors listen on all addresses. Arguments of your own take the place of this
# CMD, so repeat what you still want of it.
ENTRYPOINT ["otel-anomaly"]
CMD ["run", \
    "--set", "receivers.otlp.protocols.grpc.endpoint=0.0.0.0:4317", \
    "--set", "receivers.otlp.protocols.http.endpoint=0.0.0.0:4318", \
    "--set", "telemetry.metrics.endpoint=0.0.0.0:9464"]
