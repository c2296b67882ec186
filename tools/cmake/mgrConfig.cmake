include("${CMAKE_CURRENT_LIST_DIR}/mgrTargets.cmake")
