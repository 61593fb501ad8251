// Converts tensors of the contract to numbers. Their bytes are little-endian, row by row, and may be unaligned.
import { create } from "@bufbuild/protobuf";
import { DataType, type Tensor, TensorSchema } from "./contract.js";

/** A float32 tensor for a request. Without a shape it is a single value. */
export function float32(values: number[], shape: number[]): Tensor {
  const view = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, index) => view.setFloat32(4 * index, value, true));
  return create(TensorSchema, { dataType: DataType.FLOAT32, shape, data: new Uint8Array(view.buffer) });
}

/** The values of a tensor in an answer. Undefined stands for an unset field and has no values. */
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
