// Writes gen/contract.ts: every message, enumeration and service of the contract under one name. protoc-gen-es does not
// re-export what a file imports publicly.
import { readdirSync, writeFileSync } from "node:fs";

const files = readdirSync("gen/sonde/v1").sort();
const lines = files.map((file) => `export * from "./sonde/v1/${file.replace(/\.ts$/, ".js")}";\n`);
writeFileSync("gen/contract.ts", lines.join(""));
