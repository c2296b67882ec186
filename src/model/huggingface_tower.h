/*
 * Vision-language models: a text decoder as others are, under a name of its own in the files and in
 * an object of its own in config.json. What stands beside it, the vision tower and what leads from
 * it to the decoder, is opaque.
 */
#ifndef MGR_MODEL_HUGGINGFACE_TOWER_H
#define MGR_MODEL_HUGGINGFACE_TOWER_H

#include "model/huggingface_evidence.h"

/* The object of config.json that holds the decoder's keys. */
#define MGR_HF_TEXT_CONFIG "text_config"

/* Where the decoder lies among the tensors of the weights' files, for mgr_model.tower; 0: at the
 * top, as that of a model that is nothing else. Pure. */
uint8_t mgr_huggingface_tower(const mgr_catalogue *cat, uint32_t first_file);

/* The name that a tensor of such a decoder has there, in the place of the one that it has at the
 * top. Pure. */
void mgr_huggingface_tower_name(uint8_t tower, char name[MGR_HF_NAME_BYTES]);

/* What all names of the decoder begin with, to write down and find again; "" and 0 of none. Pure.
 */
const char *mgr_huggingface_tower_text(uint8_t tower);
uint8_t mgr_huggingface_tower_find(const char *text);

/* Is `type` the model_type of a class that makes of text_config whatever decoder its model_type
 * names? Pure. */
bool mgr_huggingface_takes_any(const char *type);

/* "text_config." where the decoder's keys are in that object, else "". Pure. */
const char *mgr_huggingface_section(const mgr_hf_evidence *ev);

#endif
