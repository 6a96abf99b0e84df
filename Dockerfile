# The web service: no torch, no compiler, no shell tools beyond the base image, not root.
#
#     docker build -t memplan .
#     docker run --rm -p 8000:8000 memplan
#     docker run --rm -p 8000:8000 memplan --host 0.0.0.0 --workers 2 --rate-limit 60 --metrics
#
# It writes nothing: run it with --read-only, --cap-drop ALL and --memory 1g.

FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY memplan memplan
COPY model_cards model_cards
# The wheel carries the allocator's replay compiled; the packages beside it come as wheels.
RUN pip wheel --no-cache-dir --wheel-dir /wheels ".[web]"

FROM python:3.12-slim
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 MALLOC_ARENA_MAX=1
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-index --find-links /wheels "memplan[web]" \
    && python -m compileall -q -j 0 /usr/local/lib/python3.12/site-packages \
    && pip uninstall -y pip \
    && useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin memplan
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=3s --start-period=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["memplan", "serve"]
CMD ["--host", "0.0.0.0"]
