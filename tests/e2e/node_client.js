// @grpc/grpc-js with @grpc/proto-loader, as they are, against a server. Prints one JSON document of what each call gave.
// node node_client.js ADDRESS TASK FOLDER_OF_PROTOS FOLDER_OF_GOOGLES
"use strict";
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const protobuf = require("protobufjs");
const path = require("path");

const [address, task, protos, googles] = process.argv.slice(2);
const options = { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true, includeDirs: [protos, googles] };
const files = ["v1/inference.proto", "v1/adapters.proto"].map((file) => path.join("adamix_protos", file));
const { adamix } = grpc.loadPackageDefinition(loader.loadSync(files.map((file) => path.join(protos, file)), options));
const inference = new adamix.v1.InferenceService(address, grpc.credentials.createInsecure());
const adapters = new adamix.v1.AdapterService(address, grpc.credentials.createInsecure());

function call(client, method, message) {
  return new Promise((resolve, reject) => client[method](message, (error, answer) => (error ? reject(error) : resolve(answer))));
}

function details(error) {
  const root = new protobuf.Root();
  root.resolvePath = (_, name) => path.join(googles, name);
  root.loadSync(["google/rpc/status.proto", "google/rpc/error_details.proto"]);
  const status = root.lookupType("google.rpc.Status").decode(error.metadata.get("grpc-status-details-bin")[0]);
  return status.details.map((any) => {
    const kind = any.type_url.split("/").pop();
    return { kind, ...root.lookupType(kind).decode(any.value).toJSON() };
  });
}

function predictStream(texts) {
  return new Promise((resolve, reject) => {
    const found = {};
    const stream = inference.PredictStream();
    stream.on("data", (answer) => (found[answer.id] = answer.prediction.classification.label));
    stream.on("error", reject);
    stream.on("end", () => resolve(found));
    texts.forEach((text, index) => stream.write({ id: String(index), input: { task, text } }));
    stream.end();
  });
}

function watch() {
  return new Promise((resolve, reject) => {
    const names = [];
    const stream = adapters.WatchTasks({});
    stream.on("error", (error) => (error.code === grpc.status.CANCELLED ? resolve(names) : reject(error)));
    stream.on("data", (change) => {
      if (change.synchronised) stream.cancel();
      else names.push(change.task.name);
    });
  });
}

async function main() {
  const texts = ["the cat sleeps", "fish"];
  const answer = await call(inference, "Predict", { inputs: texts.map((text) => ({ task, text })) });
  const refused = await call(inference, "Predict", { inputs: [{ task, text: "" }] }).catch((error) => error);
  const missing = await call(inference, "Predict", { inputs: [{ task: "nobody", text: "a" }] }).catch((error) => error);
  console.log(
    JSON.stringify({
      labels: answer.predictions.map((prediction) => prediction.classification.label),
      refused: { code: refused.code, details: details(refused) },
      missing: { code: missing.code, details: details(missing) },
      streamed: await predictStream(texts),
      watched: await watch(),
    })
  );
  inference.close();
  adapters.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
