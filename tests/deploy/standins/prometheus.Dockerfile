# Debian's Prometheus in the shape of prom/prometheus, for hosts that reach no container registry. Older, same interface.
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* \
    && install -d -o nobody -g nogroup /prometheus
USER nobody
VOLUME /prometheus
ENTRYPOINT ["/bin/prometheus"]
