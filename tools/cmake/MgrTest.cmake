# mgr_register_test(NAME COMMAND ... [NP 1 2 3] LABELS ... [TIMEOUT seconds] [ENVIRONMENT ...])
# One ctest entry, or one per rank count. Traps this guards against:
#  - a ctest timeout on mpiexec leaves spinning ranks behind: coreutils `timeout` goes inside;
#  - ranks of two tests fight for cores: MPI tests hold one lock;
#  - mpiexec ORs exit codes, which can hide a sanitizer's: its words fail the test as well.
find_program(MGR_TIMEOUT timeout REQUIRED)

function(mgr_register_test name)
  cmake_parse_arguments(T "" "TIMEOUT" "COMMAND;NP;LABELS;ENVIRONMENT" ${ARGN})
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 120)
  endif()
  math(EXPR outer "${T_TIMEOUT} + 20")
  set(runs "${T_NP}")
  if(NOT runs)
    set(runs 0)
  endif()
  foreach(np IN LISTS runs)
    if(np EQUAL 0)
      set(test ${name})
      set(launch)
      set(cores 1)
    else()
      set(test ${name}.np${np})
      set(launch ${MPIEXEC_EXECUTABLE} ${MPIEXEC_PREFLAGS} ${MPIEXEC_NUMPROC_FLAG} ${np})
      set(cores ${np})
    endif()
    add_test(NAME ${test} COMMAND ${MGR_TIMEOUT} --kill-after=10 ${T_TIMEOUT} ${launch} ${T_COMMAND})
    set_tests_properties(${test} PROPERTIES LABELS "${T_LABELS}" TIMEOUT ${outer}
      SKIP_RETURN_CODE 77 PROCESSORS ${cores}
      FAIL_REGULAR_EXPRESSION "Sanitizer;runtime error:")
    if(T_ENVIRONMENT)
      set_tests_properties(${test} PROPERTIES ENVIRONMENT "${T_ENVIRONMENT}")
    endif()
    if(NOT np EQUAL 0)
      set_tests_properties(${test} PROPERTIES RESOURCE_LOCK mpi)
    endif()
  endforeach()
endfunction()

# mgr_add_test(NAME SOURCES ... [NP 1 2 3] LABELS ... [TIMEOUT seconds]): build, link, register.
function(mgr_add_test name)
  cmake_parse_arguments(T "" "TIMEOUT" "SOURCES;NP;LABELS" ${ARGN})
  add_executable(${name} ${T_SOURCES})
  target_include_directories(${name} PRIVATE
    ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(${name} PRIVATE MGR_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data")
  target_link_libraries(${name} PRIVATE mgr mgr_flags)
  mgr_register_test(${name} COMMAND $<TARGET_FILE:${name}> NP ${T_NP} LABELS ${T_LABELS}
    TIMEOUT ${T_TIMEOUT})
endfunction()
