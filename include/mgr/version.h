/* Version of the program; a change of format or of random numbers is a new major version. */
#ifndef MGR_VERSION_H
#define MGR_VERSION_H

#define MGR_VERSION "0.1.0"

#endif
