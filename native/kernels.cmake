# The kernels as one static library, each instruction set compiled from its own file with its own flags.
# -ffp-contract=off: a product and a sum are fused where the code says fma, nowhere else, so that tails, vectors and
# recomputed signs agree to the bit.
set(native_dir ${CMAKE_CURRENT_LIST_DIR})
add_library(normkit_kernels STATIC ${native_dir}/dispatch.cpp ${native_dir}/isa_baseline.cpp)
target_compile_features(normkit_kernels PUBLIC cxx_std_17)
target_include_directories(normkit_kernels PUBLIC ${native_dir})
target_compile_options(normkit_kernels PRIVATE -O2 -ffp-contract=off -fno-math-errno -Wall -Wextra -Wno-psabi)
set_target_properties(normkit_kernels PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(NK_ISAS "avx2 avx512" CACHE STRING "instruction sets to build beside the baseline")
  if(NK_ISAS MATCHES "avx2")
    target_compile_definitions(normkit_kernels PRIVATE NK_AVX2)
    target_sources(normkit_kernels PRIVATE ${native_dir}/isa_avx2.cpp)
    set_source_files_properties(${native_dir}/isa_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
  endif()
  if(NK_ISAS MATCHES "avx512")
    target_compile_definitions(normkit_kernels PRIVATE NK_AVX512)
    target_sources(normkit_kernels PRIVATE ${native_dir}/isa_avx512.cpp)
    set_source_files_properties(${native_dir}/isa_avx512.cpp PROPERTIES COMPILE_OPTIONS  # GCC 12 warns inside its own intrinsics
      "-mavx512f;-mavx512dq;-mavx512bw;-mavx512vl;-mfma;-mf16c;-mavx2;-mprefer-vector-width=512;-Wno-maybe-uninitialized;-Wno-uninitialized")
  endif()
endif()
