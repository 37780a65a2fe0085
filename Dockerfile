# The image of ingestd: the two programs, the libraries they are linked with, and nothing else of
# ours. Built by `docker-compose build` and tried, as it is, by tests/docker/test_compose.py.

FROM debian:bookworm-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
    gcc libbsd-dev libc6-dev libjson-c-dev libmosquitto-dev libmsgpack-dev libpq-dev libsqlite3-dev \
    libssl-dev libxxhash-dev make uuid-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# .dockerignore lets in what the build reads and no more: a changed test rebuilds nothing.
COPY . .
RUN make -j"$(nproc)" \
 && make install DESTDIR=/out PREFIX=/usr/local

FROM debian:bookworm-slim
# ca-certificates: mqtts:// checks the broker against the system's authorities.
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
    ca-certificates libbsd0 libjson-c5 libmosquitto1 libmsgpackc2 libpq5 libsqlite3-0 libssl3 \
    libuuid1 libxxhash0 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
# The uid is fixed, so that the files in the state volume still belong to the user of the next image.
RUN groupadd --gid 10001 ingestd \
 && useradd --uid 10001 --gid ingestd --no-create-home --home-dir /var/lib/ingestd \
    --shell /usr/sbin/nologin ingestd \
 && install -d -o ingestd -g ingestd -m 700 /var/lib/ingestd
COPY --from=build /out/usr/local/bin/ingestd /usr/local/bin/
COPY --from=build /out/usr/local/libexec/ingestd/ /usr/local/libexec/ingestd/
# The client id lives here, and what the broker may send again: lost with the container, the broker's
# queue for us would be lost too.
VOLUME /var/lib/ingestd
ENV INGESTD_STATE_DIR=/var/lib/ingestd
USER ingestd
STOPSIGNAL SIGTERM
# Exec form: ingestd itself is PID 1 and gets the signal. A shell in between would swallow it.
ENTRYPOINT ["/usr/local/bin/ingestd"]
