// Tensors of the contract as numbers: little-endian bytes, row by row, at any alignment within the message.
import { create } from "@bufbuild/protobuf";
import { DataType, type Tensor, TensorSchema } from "./contract.js";

/** A float32 tensor of a request. Without a shape it is one value. */
export function float32(values: number[], shape: number[]): Tensor {
  const view = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, index) => view.setFloat32(4 * index, value, true));
  return create(TensorSchema, { dataType: DataType.FLOAT32, shape, data: new Uint8Array(view.buffer) });
}

/** The values of an answer's tensor. Undefined, for a field that is not set, has none. */
export function numbers(tensor: Tensor | undefined): number[] {
  if (tensor === undefined) return [];
  const { buffer, byteOffset, byteLength } = tensor.data;
  const view = new DataView(buffer, byteOffset, byteLength);
  const read = {
    [DataType.FLOAT32]: (at: number) => view.getFloat32(at, true),
    [DataType.INT32]: (at: number) => view.getInt32(at, true),
  }[tensor.dataType as number];
  if (read === undefined) throw new Error(`a tensor of type ${DataType[tensor.dataType]}`);
  return Array.from({ length: byteLength / 4 }, (_, index) => read(4 * index));
}
