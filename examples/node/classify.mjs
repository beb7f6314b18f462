// A first call from Node.js: `npm install`, then `node classify.mjs "where is my order?"` beside a running gateway.
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const protos = fileURLToPath(new URL("../../protos", import.meta.url));
const definition = loader.loadSync("millis/v1/inference.proto", { includeDirs: [protos], keepCase: false });
const { InferenceService } = grpc.loadPackageDefinition(definition).millis.v1;

const target = process.env.MILLIS_TARGET ?? "127.0.0.1:50051";
const client = new InferenceService(target, grpc.credentials.createInsecure());
const texts = process.argv.length > 2 ? process.argv.slice(2) : ["where is my order?"];

client.classifyText({ model: "intent", texts }, { deadline: Date.now() + 1000 }, (error, response) => {
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
  } else {
    response.results.forEach((result, index) => {
      const [best] = result.labels;
      console.log(`${best.label} ${best.score.toFixed(2)}  ${texts[index]}`);
    });
  }
  client.close();
});
