# Conclave's image: one binary on a small Debian, as a user without rights.
#
#   docker build -t conclave .                     compiles it (the builder stage)
#
# and from a binary that is already there, without the builder (the test suite does this):
#
#   docker build -t conclave --target runtime-prebuilt --build-arg BINARY=conclave -f Dockerfile DIR
#
# BASE may be any image with the C library that the binary was linked with.

ARG BASE=debian:bookworm-slim
ARG RUST=rust:1.95-bookworm

# ---- what both ways share -------------------------------------------------------------------------
FROM ${BASE} AS base

LABEL org.opencontainers.image.title="Conclave" \
      org.opencontainers.image.description="A host for replicated state machines that are WebAssembly components" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/conclave-host/conclave"

# The only place that is written to. The number is fixed, as volumes outlive images.
RUN install --directory --owner=65532 --group=65532 --mode=0700 /var/lib/conclave
VOLUME ["/var/lib/conclave"]

# The image's settings, below everything else: a flag, a variable of the container and a mounted configuration file
# (CONCLAVE_CONFIG) win over them.
RUN install --directory /usr/share/conclave && printf '%s\n' \
        'data_dir = "/var/lib/conclave"' \
        'listen_client = "0.0.0.0:7101"' \
        'listen_peer = "0.0.0.0:7201"' \
        'listen_admin = "0.0.0.0:7301"' \
        'master_key_file = "/run/secrets/master_key"' \
        > /usr/share/conclave/defaults.toml
ENV CONCLAVE_DEFAULTS=/usr/share/conclave/defaults.toml
EXPOSE 7101 7201 7301
USER 65532:65532
STOPSIGNAL SIGTERM
# Asks the node's own client port by grpc.health.v1: healthy means that it serves. The port is the configured one.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["/usr/local/bin/conclave", "health"]
ENTRYPOINT ["/usr/local/bin/conclave"]
CMD ["serve"]

# ---- from a binary in the build context --------------------------------------------------------------
FROM base AS runtime-prebuilt
# The default is any file that is there: builders older than BuildKit run this stage on the way to the
# last one too.
ARG BINARY=LICENSE
COPY ${BINARY} /usr/local/bin/conclave

# ---- from the source ---------------------------------------------------------------------------------
FROM ${RUST} AS builder
RUN rustup target add wasm32-unknown-unknown
WORKDIR /source
COPY . .
RUN cargo build --locked --release --package conclave-cli --bin conclave

FROM base AS runtime
COPY --from=builder /source/target/release/conclave /usr/local/bin/conclave
