# A toolchain for CMake: zig (`pip install ziglang`) compiles and links for ZIG_TARGET, such as aarch64-macos or x86_64-windows.
# To CMake the system is a generic one: what it knows of macOS and Windows asks for their own tools.
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG_TARGET PYTHON)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_SYSTEM_NAME Generic)
string(REGEX REPLACE "-.*" "" CMAKE_SYSTEM_PROCESSOR "${ZIG_TARGET}")
set(CMAKE_CXX_COMPILER ${PYTHON} -m ziglang c++)
set(CMAKE_CXX_FLAGS_INIT "-target ${ZIG_TARGET}")
set(CMAKE_CXX_ARCHIVE_CREATE "${PYTHON} -m ziglang ar qc <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "")
