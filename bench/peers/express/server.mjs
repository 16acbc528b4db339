// Stripe's webhooks the way Stripe's documentation takes them; with DATABASE_URL, each is a row before the 200.
import express from "express";
import pg from "pg";
import Stripe from "stripe";

const stripe = new Stripe("sk_test_bench");
const secret = process.env.STRIPE_WEBHOOK_SECRET;
const pool = process.env.DATABASE_URL ? new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 }) : null;
if (pool) {
  await pool.query("CREATE TABLE IF NOT EXISTS event (id TEXT PRIMARY KEY, type TEXT, body BYTEA, received_at TIMESTAMPTZ)");
}

const insert = {
  name: "insert",
  text: "INSERT INTO event (id, type, body, received_at) VALUES ($1, $2, $3, now()) ON CONFLICT (id) DO NOTHING",
};
const app = express();
app.post("/webhooks/stripe", express.raw({ type: "application/json", limit: "1mb" }), async (request, response) => {
  let event;
  try {
    event = stripe.webhooks.constructEvent(request.body, request.headers["stripe-signature"], secret);
  } catch (error) {
    response.status(400).send(error.message);
    return;
  }
  if (pool) {
    await pool.query({ ...insert, values: [event.id, event.type, request.body] });
  }
  response.json({ received: true });
});

const server = app.listen(0, "127.0.0.1", () => {
  console.log(JSON.stringify({ event: "listening", http: `127.0.0.1:${server.address().port}` }));
});
process.on("SIGTERM", () => process.exit(0));
