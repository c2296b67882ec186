/* Maps in a configuration: keys of the user's own, kept as the text of a JSON object. */
#ifndef MGR_CFG_MAP_H
#define MGR_CFG_MAP_H

#include "cfg/yaml_events.h"
#include "mgr/config.h"

/* Read the map that begins with the current event into the field of `key`. Its values are scalars,
 * lists and maps, a few levels deep; a plain scalar is null, a boolean, a number or a text, as YAML
 * 1.2 has it. Errors: MGR_ERR_CONFIG, at the place. Local. */
int mgr_map_read(mgr_config *config, const mgr_key *key, mgr_yaml *yaml,
                 mgr_err *err) MGR_NODISCARD;

#endif
