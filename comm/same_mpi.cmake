# atoll_require_same_mpi(LIBRARIES): ends the configuration where one of the libraries (HDF5's) was built
# with another MPI library than the one found: the program would load both, and crash in whichever call
# comes second.
function(atoll_require_same_mpi libraries)
  if(NOT CMAKE_OBJDUMP)
    message(STATUS "No objdump: not checked whether HDF5 was built with this MPI library")
    return()
  endif()
  # The names of interfaces: libmpi.so.40 is Open MPI's, libmpich.so.12 and libmpi.so.12 are MPICH's.
  set(pattern "libmpi(ch)?(_cray|_gnu[_0-9]*|_intel)?\\.so\\.[0-9]+")
  set(own "")
  foreach(library IN LISTS MPI_CXX_LIBRARIES)
    execute_process(COMMAND ${CMAKE_OBJDUMP} -p ${library} OUTPUT_VARIABLE headers ERROR_QUIET)
    string(REGEX MATCH "SONAME +(${pattern})" ignored "${headers}")
    if(CMAKE_MATCH_1)
      list(APPEND own ${CMAKE_MATCH_1})
    endif()
  endforeach()
  foreach(library IN LISTS libraries)
    if(NOT library MATCHES "hdf5")
      continue()
    endif()
    execute_process(COMMAND ${CMAKE_OBJDUMP} -p ${library} OUTPUT_VARIABLE headers ERROR_QUIET)
    string(REGEX MATCH "NEEDED +(${pattern})" ignored "${headers}")
    if(CMAKE_MATCH_1 AND own AND NOT CMAKE_MATCH_1 IN_LIST own)
      message(FATAL_ERROR "HDF5 (${library}) was built with ${CMAKE_MATCH_1}, and the MPI library found is "
                          "${own}. Take both of one MPI: presets cpu and cpu-mpich on Debian, elsewhere "
                          "MPI_HOME and HDF5_ROOT.")
    endif()
  endforeach()
endfunction()
