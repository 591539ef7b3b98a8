# fedft in a container; server and site are the same image, `server/compose.yaml` and `client/compose.yaml` run it.
#
#   docker build --target hashes --output . .      writes requirements.build.txt and requirements.hashed.txt here: every
#                                                  package with the SHA-256 of the one file that this image may install
#   docker build --tag fedft:0.1.0 .
#
# PYTHON is the base image. Its digest, PYTHON=python:3.12-slim@sha256:..., pins it for good. For CUDA take python:3.12,
# which has the C compiler that Triton calls; torch brings CUDA's libraries, the machine its driver.
# PIP_INDEX_URL, PIP_EXTRA_INDEX_URL say where packages are: which build of torch there is decides between CPU and CUDA.
ARG PYTHON=python:3.12-slim

FROM ${PYTHON} AS resolve
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml constraints.txt /src/
COPY release/hashes.py /src/release/
RUN ["python", "/src/release/hashes.py", "--to", "/src"]

FROM scratch AS hashes
COPY --from=resolve /src/requirements.build.txt /src/requirements.hashed.txt /

FROM ${PYTHON} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN ["python", "-m", "venv", "/opt/fedft"]
COPY requirements.build.txt requirements.hashed.txt /src/
# what builds comes first, by its hash too: pip would fetch it unchecked for a package that is source only
RUN ["/opt/fedft/bin/pip", "install", "--require-hashes", "--no-deps", "--only-binary=:all:", \
     "--requirement", "/src/requirements.build.txt"]
RUN ["/opt/fedft/bin/pip", "install", "--require-hashes", "--no-deps", "--no-build-isolation", \
     "--requirement", "/src/requirements.hashed.txt"]
COPY pyproject.toml README.md LICENSE /src/
COPY fedft /src/fedft
COPY strategies /src/strategies
COPY client /src/client
COPY server /src/server
COPY simulations /src/simulations
COPY benchmarks /src/benchmarks
RUN ["/opt/fedft/bin/pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "/src"]
RUN ["/opt/fedft/bin/pip", "check"]

FROM ${PYTHON}
COPY --from=build /opt/fedft /opt/fedft
ENV PATH=/opt/fedft/bin:${PATH} HOME=/var/lib/fedft USER=fedft FEDFT_CACHE=/var/lib/fedft/cache HF_HUB_OFFLINE=1 \
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1
# the owner of the private keys and of the state; any other number will do
USER 1000:1000
WORKDIR /var/lib/fedft
EXPOSE 9443
ENTRYPOINT ["fedft"]
CMD ["--help"]
