-- An Lmod module of an installed mgr-upcycle: copy it to MODULEPATH/mgr-upcycle/0.1.0.lua, and set
-- the prefix and the names of your site's modules for MPI and HDF5.
local prefix = "/opt/mgr-upcycle/0.1.0"
whatis("Megatron-compatible distributed checkpoint rewriter with Drop-Upcycling")
depends_on("mpich", "hdf5-parallel")
prepend_path("PATH", pathJoin(prefix, "bin"))
prepend_path("MANPATH", pathJoin(prefix, "share/man"))
prepend_path("LD_LIBRARY_PATH", pathJoin(prefix, "lib"))
prepend_path("PKG_CONFIG_PATH", pathJoin(prefix, "lib/pkgconfig"))
prepend_path("CMAKE_PREFIX_PATH", prefix)
