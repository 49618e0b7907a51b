# The service with its kernels compiled: a container is ready without compiling anything.
#
#   docker build -t otel-anomaly .
#   docker run -p 4317:4317 -p 4318:4318 -p 9464:9464 -v anomaly:/data otel-anomaly
#
# Give it 30 s to stop (`docker stop -t 30`): it delivers what it holds, for up to 20 s by default.

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY otel_anomaly ./otel_anomaly
RUN python -m venv /opt/otel-anomaly \
    && /opt/otel-anomaly/bin/pip install --no-cache-dir --disable-pip-version-check .

# Machine code is kept per processor. For `generic` it runs on every one of the image's
# architecture; the same name must be set when the service runs, or it compiles anew.
ENV NUMBA_CPU_NAME=generic NUMBA_CACHE_DIR=/var/cache/otel-anomaly
RUN /opt/otel-anomaly/bin/python -m otel_anomaly.warm

FROM python:3.12-slim
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin anomaly \
    && install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /opt/otel-anomaly /opt/otel-anomaly
# The user's own: numba wants to write where it reads from.
COPY --from=build --chown=10001:10001 /var/cache/otel-anomaly /var/cache/otel-anomaly

ENV PATH=/opt/otel-anomaly/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NUMBA_CPU_NAME=generic \
    NUMBA_CACHE_DIR=/var/cache/otel-anomaly \
    OTEL_ANOMALY_DATA=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 4317 4318 9464
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/readyz', timeout=2)"]

# In a container the doors listen on all addresses. Arguments of your own take the place of this
# CMD, so repeat what you still want of it.
ENTRYPOINT ["otel-anomaly"]
CMD ["run", \
    "--set", "receivers.otlp.protocols.grpc.endpoint=0.0.0.0:4317", \
    "--set", "receivers.otlp.protocols.http.endpoint=0.0.0.0:4318", \
    "--set", "telemetry.metrics.endpoint=0.0.0.0:9464"]
