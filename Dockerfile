# The service on CPUs, with a linker that is given when it is started:
#
#   docker build -t elq_jax .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/runs/demo/linker:/linker:ro" elq_jax
#
# tests/serving/test_server.py runs the steps of this file without Docker. The image itself was not
# built where this was written, since no base image could be pulled there.
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    JAX_PLATFORMS=cpu \
    ELQ_JAX_CACHE=/cache

RUN useradd --system --uid 10001 --home-dir /nonexistent elq \
    && mkdir /cache && chown elq /cache

WORKDIR /source
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY elq_jax elq_jax
COPY configs configs
COPY demo demo
RUN python -m pip install --constraint requirements.txt ".[serve]" && rm -rf build

# Compiled programs are kept here; give it a volume, and a new container is ready in seconds.
VOLUME /cache
WORKDIR /
USER elq
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready')"]
ENTRYPOINT ["python", "-m", "elq_jax.serve", "--host=0.0.0.0", "--port=8000"]
CMD ["--linker=/linker"]
