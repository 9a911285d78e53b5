// torch's threads, asked for while they come.
//
// Where other processes hold the cores, a parallel region ends when the last thread has had its turn, milliseconds after
// the work is done; then the calling thread alone is faster.
#pragma once
#include "parallel.h"

namespace normkit {

// A loop over the threads of `pool`, which is like torch_parallel_for: it counts what regions take against what the calling
// thread would take alone, and leaves the pool out for a while where that is less. Null where the pool is; one pool at a time.
ParallelFunction loop_over(ParallelFunction pool);

}  // namespace normkit
