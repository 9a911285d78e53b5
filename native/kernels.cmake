# The kernels as one static library: the same sources once for each instruction set, under its flags.
# -ffp-contract=off: a product and a sum are fused where the code says fma, nowhere else, so that tails, vectors and
# recomputed signs agree to the bit.
set(native_dir ${CMAKE_CURRENT_LIST_DIR})
set(NK_OPTIMIZE -O2 CACHE STRING "how far to optimize the kernels")
set(NK_ISAS "baseline avx2 avx512" CACHE STRING
    "instruction sets to build on x86-64; 64-bit ARM has neon, every other CPU the baseline")

function(set_up_kernels target)
  target_compile_features(${target} PUBLIC cxx_std_17)
  target_include_directories(${target} PUBLIC ${native_dir})
  target_compile_options(${target} PRIVATE ${NK_OPTIMIZE} -ffp-contract=off -fno-math-errno -Wall -Wextra -Wno-psabi)
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
endfunction()

add_library(normkit_kernels STATIC ${native_dir}/dispatch.cpp ${native_dir}/pool.cpp ${native_dir}/plan/sweeps.cpp ${native_dir}/scratch.cpp)
set_up_kernels(normkit_kernels)

function(add_instruction_set isa level)  # and its flags
  list(TRANSFORM kernel_files PREPEND ${native_dir}/ OUTPUT_VARIABLE sources)
  add_library(normkit_${isa} OBJECT ${sources})
  set_up_kernels(normkit_${isa})
  target_compile_definitions(normkit_${isa} PRIVATE NK_ISA=${isa} NK_LEVEL=${level})
  target_compile_options(normkit_${isa} PRIVATE ${ARGN})
  target_sources(normkit_kernels PRIVATE $<TARGET_OBJECTS:normkit_${isa}>)
endfunction()

set(kernel_files planar/planar_sweeps.cpp rows/rows_sweeps.cpp channel/channel_norm.cpp group/group_norm.cpp
                 layer/layer_norm.cpp element/element_norm.cpp isa.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
  target_compile_definitions(normkit_kernels PRIVATE NK_NEON)
  add_instruction_set(neon 0)
elseif(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64" OR NK_ISAS MATCHES "baseline")
  target_compile_definitions(normkit_kernels PRIVATE NK_BASELINE)
  add_instruction_set(baseline 0)
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  if(NK_ISAS MATCHES "avx2")
    target_compile_definitions(normkit_kernels PRIVATE NK_AVX2)
    add_instruction_set(avx2 1 -mavx2 -mfma -mf16c)
  endif()
  if(NK_ISAS MATCHES "avx512")
    target_compile_definitions(normkit_kernels PRIVATE NK_AVX512)
    add_instruction_set(avx512 2 -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mf16c -mavx2 -mbmi2
                        -mprefer-vector-width=512 -Wno-maybe-uninitialized -Wno-uninitialized)  # GCC 12 warns inside its own intrinsics
  endif()
endif()
