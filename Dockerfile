# Posthaste with its roles and tools, for docker-compose.yml or on its own. Built from the clone: docker build -t posthaste .
# To pin an image beyond its tag, put the digest that `docker buildx imagetools inspect IMAGE` shows behind it.

FROM rust:1.95.0-slim-bookworm AS build
# What librdkafka and SQLite are compiled with, and the headers of OpenSSL and zlib.
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ make pkg-config libssl-dev zlib1g-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# That of the image: the one that rust-toolchain.toml names would be fetched again, with components for developers.
ENV RUSTUP_TOOLCHAIN=1.95.0
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin posthaste --bin loadtest \
 && install -D -t /out target/release/posthaste target/release/loadtest

FROM debian:12.12-slim AS run
# curl asks /readyz, openssl makes the certificates of a trial (deploy/compose/certificates.sh).
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl libssl3 openssl zlib1g \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 posthaste \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/posthaste --shell /usr/sbin/nologin posthaste
# Volumes that are mounted here belong to the user that the process runs as. Each role sees its own certificate alone.
RUN for dir in /var/lib/posthaste /etc/posthaste/link/edge /etc/posthaste/link/ingest /etc/posthaste/link/fanout \
      /etc/posthaste/link/archiver; do install -d -m 0700 -o 10001 -g 10001 "$dir" || exit 1; done \
 && chown 10001:10001 /etc/posthaste/link
COPY --from=build /out/ /usr/local/bin/
USER 10001:10001
WORKDIR /var/lib/posthaste
EXPOSE 8080 9090
ENTRYPOINT ["posthaste"]
CMD ["--help"]
