# batchrun in a container, for jobs in a folder of the host:
#   docker build -t batchrun .
#   docker run --rm --user "$(id -u):$(id -g)" -e OPENROUTER_API_KEY -v "$PWD:/jobs" batchrun jobs/translate.yaml
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE CHANGELOG.md ./
COPY batchrun ./batchrun
# The versions that were tested, of what a plain installation needs.
RUN grep -oE '^[A-Za-z0-9._-]+==[^ ;\\]+' requirements.lock > pins.txt \
 && python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir --constraint pins.txt . \
 && /venv/bin/batchrun --version

FROM python:3.13-slim
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH HOME=/tmp
# The job file, its input, its output and the checkpoint (.batchrun/) all lie in the mounted folder.
WORKDIR /jobs
ENTRYPOINT ["batchrun"]
CMD ["--help"]
