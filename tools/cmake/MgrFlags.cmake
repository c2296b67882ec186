# Language, warnings and sanitizers for every target of the project, as one INTERFACE target.
add_library(mgr_flags INTERFACE)
target_compile_features(mgr_flags INTERFACE c_std_11)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")

# Equal bits on every CPU and compiler are promised: no fused multiply-add that is not written.
target_compile_options(mgr_flags INTERFACE -ffp-contract=off)
target_compile_definitions(mgr_flags INTERFACE _GNU_SOURCE _FILE_OFFSET_BITS=64)
target_compile_options(mgr_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes
  -Wcast-qual -Wvla -Wwrite-strings -Wformat=2 -Wundef)
# gcc cannot see that a failing call has a nonzero code, and takes every out-parameter for
# uninitialized behind it; clang-tidy's analyzer and the sanitizers watch that instead.
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
  target_compile_options(mgr_flags INTERFACE -Wno-maybe-uninitialized)
endif()
if(MGR_WERROR)
  target_compile_options(mgr_flags INTERFACE -Werror)
endif()
if(MGR_SANITIZE)
  target_compile_options(mgr_flags INTERFACE
    -fsanitize=${MGR_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(mgr_flags INTERFACE -fsanitize=${MGR_SANITIZE})
endif()
if(MGR_FUZZ)
  target_compile_options(mgr_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
