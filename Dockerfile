# Two stages: the first makes a wheel and a virtual environment, the second takes only that.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY sidecar sidecar
COPY lbplugins lbplugins
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
 && python -m venv /opt/lb-sidecar \
 && /opt/lb-sidecar/bin/pip install --no-cache-dir "$(echo /wheels/lb_sidecar-*.whl)[uvloop,grpc,dns,nginx]" \
 && /opt/lb-sidecar/bin/pip uninstall --yes --quiet pip \
 && python -m compileall -q /opt/lb-sidecar/lib

FROM python:3.13-slim
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lb-sidecar" \
      org.opencontainers.image.description="Health-check sidecar for load balancers: probes, judges, ejects and returns instances, and says why" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# A name for the number, because operators' acts are recorded by name.
RUN groupadd --gid 65532 lb-sidecar \
 && useradd -K UID_MAX=65532 --uid 65532 --gid 65532 --no-create-home --home-dir /var/lib/lb-sidecar --shell /usr/sbin/nologin lb-sidecar \
 && install -d -o 65532 -g 65532 -m 0750 /var/lib/lb-sidecar /run/lb-sidecar \
 && install -d -m 0755 /etc/lb-sidecar
COPY --from=build /opt/lb-sidecar /opt/lb-sidecar
ENV PATH=/opt/lb-sidecar/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Beside these nothing is written: the root may be read-only. Name the first one, or what the sidecar has out is forgotten with the container.
VOLUME ["/var/lib/lb-sidecar", "/run/lb-sidecar"]
USER 65532:65532
# The sidecar's own life, never that of the instances: restarting it would heal none of them. Not urllib, which would ask a proxy.
HEALTHCHECK --interval=10s --timeout=4s --start-period=15s --retries=3 \
  CMD ["python", "-I", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8642, timeout=3); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["lb-sidecar"]
CMD ["run"]
