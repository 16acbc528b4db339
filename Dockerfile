# One image for each process, by its target: docker build --target payments .
# Each holds its own code, contract and dependencies only, runs as nobody in particular, and needs to write to /data alone.
FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# pip is left behind, and so is the bytecode of all that is never imported: the SDKs have thousands of modules.
RUN python -m venv --without-pip /venv
ENV INSTALL="python -m pip --python /venv/bin/python install --quiet --no-compile --require-hashes --only-binary :all:"

FROM build AS payments-build
COPY requirements/payments.txt .
RUN $INSTALL -r payments.txt

FROM build AS email-build
COPY requirements/email.txt .
RUN $INSTALL -r email.txt

FROM build AS sms-build
COPY requirements/sms.txt .
RUN $INSTALL -r sms.txt

FROM build AS gateway-build
COPY requirements/gateway.txt .
RUN $INSTALL -r gateway.txt

FROM build AS sandbox-build
COPY requirements/sandbox.txt .
RUN $INSTALL -r sandbox.txt

FROM python:3.12-slim AS process
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin topsmile && install -d -o topsmile -g topsmile /data
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app:/app/protos PYTHONUNBUFFERED=1
# A healthy process can store what it accepts.
ENV READY="import os, ssl, sys, urllib.request as web; tls = os.environ.get(sys.argv[1] + '_TLS_CERT'); \
    web.urlopen(('https' if tls else 'http') + '://127.0.0.1:' + sys.argv[2], timeout=3, context=ssl._create_unverified_context())"
WORKDIR /app
# Each image imports its process once while it is built: a read-only process could never keep what it compiles.
ENV DATABASES="services.chassis.database.sqlite, services.chassis.database.postgres"

FROM process AS payments
COPY --from=payments-build /venv /venv
COPY protos/topsmile/common protos/topsmile/common
COPY protos/topsmile/descriptors.binpb protos/topsmile/
COPY protos/topsmile/payments protos/topsmile/payments
COPY services/brazil services/brazil
COPY services/chassis services/chassis
COPY services/payments services/payments
RUN python -c "import services.payments.__main__, $DATABASES"
ENV PAYMENTS_LISTEN=0.0.0.0:50051 PAYMENTS_OPERATIONS_LISTEN=0.0.0.0:9101 \
    PAYMENTS_DATABASE_URL=sqlite:////data/payments.db
USER 10001
HEALTHCHECK --interval=10s --start-period=60s CMD python -c "$READY" PAYMENTS 9101/readyz
CMD ["python", "-m", "services.payments"]

FROM process AS email
COPY --from=email-build /venv /venv
COPY protos/topsmile/common protos/topsmile/common
COPY protos/topsmile/descriptors.binpb protos/topsmile/
COPY protos/topsmile/email protos/topsmile/email
COPY services/brazil services/brazil
COPY services/chassis services/chassis
COPY services/messaging services/messaging
COPY services/email services/email
RUN python -c "import services.email.__main__, $DATABASES"
ENV EMAIL_LISTEN=0.0.0.0:50052 EMAIL_OPERATIONS_LISTEN=0.0.0.0:9102 EMAIL_DATABASE_URL=sqlite:////data/email.db
USER 10001
HEALTHCHECK --interval=10s --start-period=60s CMD python -c "$READY" EMAIL 9102/readyz
CMD ["python", "-m", "services.email"]

FROM process AS sms
COPY --from=sms-build /venv /venv
COPY protos/topsmile/common protos/topsmile/common
COPY protos/topsmile/descriptors.binpb protos/topsmile/
COPY protos/topsmile/sms protos/topsmile/sms
COPY services/brazil services/brazil
COPY services/chassis services/chassis
COPY services/messaging services/messaging
COPY services/sms services/sms
RUN python -c "import services.sms.__main__, $DATABASES"
ENV SMS_LISTEN=0.0.0.0:50053 SMS_OPERATIONS_LISTEN=0.0.0.0:9103 SMS_DATABASE_URL=sqlite:////data/sms.db
USER 10001
HEALTHCHECK --interval=10s --start-period=60s CMD python -c "$READY" SMS 9103/readyz
CMD ["python", "-m", "services.sms"]

FROM process AS gateway
COPY --from=gateway-build /venv /venv
COPY protos/topsmile protos/topsmile
COPY services/chassis services/chassis
COPY gateway gateway
RUN python -c "import gateway.__main__, $DATABASES"
ENV GATEWAY_LISTEN=0.0.0.0:8080 GATEWAY_OPERATIONS_LISTEN=0.0.0.0:8081 GATEWAY_DATABASE_URL=sqlite:////data/gateway.db
USER 10001
HEALTHCHECK --interval=10s --start-period=60s CMD python -c "$READY" GATEWAY 8081/readyz
CMD ["python", "-m", "gateway"]

FROM process AS sandbox
COPY --from=sandbox-build /venv /venv
COPY sandbox sandbox
RUN python -c "import sandbox.__main__"
ENV SANDBOX_LISTEN=0.0.0.0:8090 SANDBOX_DATABASE=/data/sandbox.db
USER 10001
HEALTHCHECK --interval=10s --start-period=60s CMD python -c "$READY" SANDBOX 8090/healthz
CMD ["python", "-m", "sandbox"]
