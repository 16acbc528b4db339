// Create a Pix for an appointment and follow it until it is paid: node pay.js [appointment]
//
// PAYMENTS_TARGET, PAYMENTS_TOKEN, PAYMENTS_CURSOR (a file) and PATIENCE (seconds) have defaults that suit `make run`.
// Exit codes: 0 paid, 1 an error, 2 the payment ended unpaid, 3 not within our patience.

import { readFile, rename, writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import * as grpc from "@grpc/grpc-js";
import * as loader from "@grpc/proto-loader";

const { PAYMENTS_TARGET = "127.0.0.1:50051", PAYMENTS_TOKEN } = process.env;
const { PAYMENTS_CURSOR = "payments.cursor", PATIENCE = "600" } = process.env;
const [appointment = "812"] = process.argv.slice(2);
const giveUpAt = Date.now() + Number(PATIENCE) * 1000;

const options = {
  includeDirs: [fileURLToPath(new URL("../../protos", import.meta.url)), fileURLToPath(new URL(".", import.meta.url))],
  enums: String, // the names of the contract: PAYMENT_STATUS_SUCCEEDED
  longs: Number, // amounts have at most 8 digits
  defaults: true,
  json: true, // unpacks google.protobuf.Any, which the details of an error are
};
const { topsmile } = grpc.loadPackageDefinition(loader.loadSync("topsmile/payments/v1/payments.proto", options));
const { "google.rpc.Status": Status } = loader.loadSync("status.proto", options);

// Off loopback: grpc.credentials.createSsl().
const payments = new topsmile.payments.v1.PaymentService(PAYMENTS_TARGET, grpc.credentials.createInsecure());
const credentials = new grpc.Metadata();
if (PAYMENTS_TOKEN) credentials.set("authorization", `Bearer ${PAYMENTS_TOKEN}`);

/** A unary call as a promise; without a deadline it could wait for ever. */
const ask = (method, request, seconds = 10) =>
  new Promise((resolve, reject) => {
    const deadline = Date.now() + seconds * 1000;
    payments[method](request, credentials, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });

/** What an error says beyond its code: decide by `code` and `reason`, wait `retryAfter` ms, show `forPatient`. */
function explain(error) {
  const packed = error.metadata?.get("grpc-status-details-bin") ?? [];
  const details = packed.flatMap((bytes) => Status.deserialize(bytes).details);
  const detail = (name) => details.find((found) => found["@type"]?.endsWith(`/google.rpc.${name}`));
  const delay = detail("RetryInfo")?.retryDelay;
  return {
    code: grpc.status[error.code],
    reason: detail("ErrorInfo")?.reason, // absent when no service of ours has answered
    metadata: detail("ErrorInfo")?.metadata,
    retryAfter: delay && delay.seconds * 1000 + delay.nanos / 1e6,
    fields: detail("BadRequest")?.fieldViolations,
    forPatient: detail("LocalizedMessage")?.message,
  };
}

/** Repeat what is safe to repeat: reads, and with the same idempotency key also what creates, sends or moves money. */
async function persist(call) {
  const { UNAVAILABLE, ABORTED, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED } = grpc.status;
  const again = [UNAVAILABLE, ABORTED, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED];
  for (let failures = 0; ; failures++) {
    try {
      return await call();
    } catch (error) {
      const { code, reason, retryAfter } = explain(error);
      const wait = (retryAfter ?? 0) + Math.random() * Math.min(200 * 2 ** failures, 10_000); // jitter: not all at once
      if (!again.includes(error.code) || Date.now() + wait > giveUpAt) throw error;
      console.error(`${code} ${reason ?? error.details}: again in ${Math.round(wait)} ms`);
      await sleep(wait);
    }
  }
}

const OVER = ["SUCCEEDED", "CANCELED", "FAILED", "EXPIRED"];
const short = (status) => status.replace("PAYMENT_STATUS_", "");
const reais = ({ amountMinor }) => (amountMinor / 100).toLocaleString("pt-BR", { style: "currency", currency: "BRL" });
const sentence = (payment) =>
  ({
    CREATING: "Estamos preparando o seu pagamento.",
    AWAITING_CUSTOMER: `Aguardando o seu Pix de ${reais(payment.amount)}.`,
    PROCESSING: "Estamos confirmando o seu pagamento.",
    SUCCEEDED: `Pagamento de ${reais(payment.amount)} confirmado. Obrigado!`,
    EXPIRED: "O código Pix venceu sem pagamento.",
    UNKNOWN: "Estamos verificando o seu pagamento. Não pague de novo.",
  })[short(payment.status)] ?? "O pagamento não foi concluído.";

/** Watch from the stored cursor until this payment is over; called again after a break, it goes on where it was. */
async function follow(paymentId) {
  const cursor = await readFile(PAYMENTS_CURSOR, "utf8").catch(() => "");
  // Renewed each minute: a stream over a connection that died silently would wait for ever.
  const deadline = Math.min(Date.now() + 60_000, giveUpAt);
  const stream = payments.WatchPayments({ cursor }, credentials, { deadline });
  stream.on("error", () => {}); // `for await` throws it; after `cancel` nobody has to hear it
  try {
    for await (const { cursor: next, change } of stream) {
      const ours = change?.payment.paymentId === paymentId; // no change: a heartbeat, which only moves the cursor
      if (ours) {
        console.log(`${paymentId} ${short(change.previousStatus)} -> ${short(change.payment.status)}`);
        console.log(sentence(change.payment));
      }
      await writeFile(`${PAYMENTS_CURSOR}.new`, next); // only now: a change may be seen twice, never missed
      await rename(`${PAYMENTS_CURSOR}.new`, PAYMENTS_CURSOR);
      if (ours && OVER.includes(short(change.payment.status))) return change.payment;
    }
  } catch (error) {
    if (error.code === grpc.status.OUT_OF_RANGE) await writeFile(PAYMENTS_CURSOR, ""); // CURSOR_TOO_OLD
    else if (error.code !== grpc.status.DEADLINE_EXCEEDED) throw error;
  } finally {
    stream.cancel();
  }
  return (await ask("GetPayment", { paymentId })).payment; // what a break may have kept from us
}

async function main() {
  const request = {
    idempotencyKey: `pix-${appointment}`, // made of what is being paid, so that a restart asks for the same payment
    amount: { amountMinor: 15000, currency: "BRL" },
    appointmentId: appointment,
    patientId: "77",
    description: "Limpeza",
    methods: ["PAYMENT_METHOD_PIX"],
  };
  let { payment } = await persist(() => ask("CreatePayment", request));
  console.log(`${payment.paymentId} is ${short(payment.status)}`);
  console.log(sentence(payment));
  if (payment.pix) console.log(`Pix copia e cola: ${payment.pix.text}`);
  while (!OVER.includes(short(payment.status))) {
    if (Date.now() >= giveUpAt) return 3;
    payment = await persist(() => follow(payment.paymentId));
  }
  return short(payment.status) === "SUCCEEDED" ? 0 : 2;
}

try {
  process.exitCode = await main();
} catch (error) {
  const { code, reason, metadata, fields, forPatient } = explain(error);
  console.error(`${code ?? error.name} ${reason ?? ""}: ${error.details ?? error.message}`, metadata ?? "");
  for (const { field, description } of fields ?? []) console.error(`  ${field}: ${description}`);
  if (forPatient) console.log(forPatient);
  process.exitCode = Date.now() >= giveUpAt ? 3 : 1;
} finally {
  payments.close();
}
