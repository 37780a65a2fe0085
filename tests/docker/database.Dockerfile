# Stands in for timescale/timescaledb: the same variables, paths and behaviour at the first start,
# Debian's PostgreSQL 15. Without the extension: then the table is an ordinary one.
FROM debian:bookworm-slim
ENV LC_ALL=C.UTF-8
# postgresql-15 makes a cluster unless postgresql-common's file says no; the real image has none.
RUN apt-get update \
 && apt-get install -y --no-install-recommends postgresql-common \
 && echo 'create_main_cluster = false' >>/etc/postgresql-common/createcluster.conf \
 && apt-get install -y --no-install-recommends postgresql-15 \
 && rm -rf /var/lib/apt/lists/*
COPY database-entrypoint /usr/local/bin/
# Fast shutdown, as the real image has it.
STOPSIGNAL SIGINT
ENTRYPOINT ["database-entrypoint"]
