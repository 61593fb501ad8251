// Assembles answers. They arrive in slices that say where they belong.
import {
  type InterveneResponse,
  type Readings,
  type RestorationGrid,
  type RunContext,
  Statistic,
  type Tensor,
  type TraceResponse,
} from "../gen/contract.js";
import { numbers } from "./tensors.js";

/** The grid of one component: the probability of one target, by position and layer. */
export class Grid {
  readonly #cells = new Map<string, number>();
  readonly #positions = new Set<number>();
  readonly #layers = new Set<number>();

  put(slice: RestorationGrid): void {
    const values = numbers(slice.probabilities);
    slice.positions.forEach((position, row) => {
      slice.layers.forEach((layer, column) => {
        this.#positions.add(position);
        this.#layers.add(layer);
        this.#cells.set(`${position} ${layer}`, values[row * slice.layers.length + column]!);
      });
    });
  }

  /** Every cell, by position and then by layer. */
  *cells(): Generator<{ position: number; layer: number; probability: number }> {
    const ascending = (one: number, other: number) => one - other;
    for (const position of [...this.#positions].sort(ascending)) {
      for (const layer of [...this.#layers].sort(ascending)) {
        yield { position, layer, probability: this.#cells.get(`${position} ${layer}`)! };
      }
    }
  }
}

/** The answer of a causal trace. */
export class Traced {
  context: RunContext | undefined;
  corrupted: number[] = [];
  noiseDeviation = 0;
  readonly grids = new Map<number, Grid>();

  put(message: TraceResponse): void {
    this.context ??= message.context;
    if (message.corruption !== undefined) {
      this.corrupted = message.corruption.probabilities;
      this.noiseDeviation = message.corruption.noiseDeviation;
    }
    for (const slice of message.grids) {
      if (!this.grids.has(slice.component)) this.grids.set(slice.component, new Grid());
      this.grids.get(slice.component)!.put(slice);
    }
  }
}

/** What is known of the values of one number. */
export interface Moments {
  count: number;
  mean: number;
  deviation: number;
}

/** The moments of the values of both. */
function joined(one: Moments, other: Moments): Moments {
  const count = one.count + other.count;
  if (count === 0) return one;
  const mean = (one.count * one.mean + other.count * other.mean) / count;
  const squares = [one, other].reduce((sum, part) => sum + part.count * (part.deviation ** 2 + part.mean ** 2), 0);
  return { count, mean, deviation: Math.sqrt(Math.max(0, squares / count - mean ** 2)) };
}

/** The answer of a causal trace over cases, reduced in parts. It takes one component and one target. */
export class Reduced {
  cases = 0;
  /** By first case: a part, which comes as means and then as deviations; by "row layer". */
  readonly parts = new Map<number, Map<string, Moments>>();

  put(message: TraceResponse): void {
    const about = message.reduction;
    if (about === undefined) return; // progress alone
    if (!this.parts.has(about.firstCase)) {
      this.parts.set(about.firstCase, new Map());
      this.cases += about.cases;
    }
    const cells = this.parts.get(about.firstCase)!;
    for (const slice of message.grids) {
      const values = numbers(slice.probabilities);
      slice.positions.forEach((row, index) => {
        slice.layers.forEach((layer, column) => {
          const key = `${row} ${layer}`;
          const cell = cells.get(key) ?? { count: slice.counts[index]!, mean: 0, deviation: 0 };
          const value = values[index * slice.layers.length + column]!;
          if (about.statistic === Statistic.MEAN) cell.mean = value;
          else cell.deviation = value;
          cells.set(key, cell);
        });
      });
    }
  }

  /** The parts, joined. To go on after a break, ask for the cases from `cases` on. */
  at(row: number, layer: number): Moments {
    const cells = [...this.parts.values()].map((part) => part.get(`${row} ${layer}`)!);
    return cells.reduce(joined, { count: 0, mean: 0, deviation: 0 });
  }
}

const COLUMNS = [
  "logProbabilities",
  "logits",
  "klDivergences",
  "topTokenIds",
  "topLogProbabilities",
  "editNorms",
] as const satisfies readonly (keyof Readings)[];

/** The columns of an intervention, row by row, for the runs that have arrived so far. */
export class Changed {
  context: RunContext | undefined;
  readonly columns = new Map<(typeof COLUMNS)[number], number[]>();
  readonly activations = new Map<string, { run: number; values: number[] }>();
  arrived = 0;

  put(message: InterveneResponse): void {
    this.context ??= message.context;
    const readings = message.readings;
    if (readings !== undefined) {
      for (const name of COLUMNS) this.#putRows(name, readings[name], readings);
      this.arrived += readings.count;
    }
    for (const slice of message.activations) {
      const key = `${slice.run} ${slice.site} ${slice.layer}`;
      const whole = this.activations.get(key) ?? { run: slice.run, values: [] };
      numbers(slice.values).forEach((value, index) => (whole.values[Number(slice.offset) + index] = value));
      this.activations.set(key, whole);
    }
  }

  #putRows(name: (typeof COLUMNS)[number], tensor: Tensor | undefined, { offset, count }: Readings): void {
    if (tensor === undefined) return;
    const column = this.columns.get(name) ?? [];
    const values = numbers(tensor);
    const width = values.length / count;
    values.forEach((value, index) => (column[offset * width + index] = value));
    this.columns.set(name, column);
  }
}
