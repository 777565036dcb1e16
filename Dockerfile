# docker build -t dinodomain . && docker run --rm -v "$PWD":/data dinodomain demo out=/data/demo-out
FROM python:3.11-slim
WORKDIR /opt/dinodomain
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY dinodomain dinodomain
COPY domains domains
COPY configs configs
RUN pip install --no-cache-dir -c constraints.txt ".[all]"
WORKDIR /data
ENTRYPOINT ["dinodomain"]
CMD ["--help"]
