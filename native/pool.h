// torch's threads, asked for while they come.
//
// Where other processes hold the cores, a parallel region ends when the last thread has had its turn, milliseconds after
// the work is done; then the calling thread alone is faster. And so it is where the pool sleeps between short calls.
#pragma once
#include "parallel.h"

namespace normkit {

// From now on `shared_loop` shares its work by this loop, which is like torch_parallel_for; null: by none.
void set_pool(ParallelFunction loop);

// Like torch_parallel_for. Counts what regions take against what the calling thread would take alone, and leaves the
// pool out for a while where that is less. Null where there is no pool.
ParallelFunction shared_loop();

}  // namespace normkit
