/* Private to the reader: how one kind of file is cut into records, and how one record is parsed. */
#ifndef NB_DATA_READER_FILE_H
#define NB_DATA_READER_FILE_H

#include "data/reader.h"

void nb_reader_add(nb_reader *r, int64_t line, const char *raw, size_t n); /* a record of the last file */

nb_status nb_jsonl_split(nb_reader *r, nb_source *s);
nb_status nb_json_split(nb_reader *r, nb_source *s);
nb_status nb_csv_split(nb_reader *r, nb_source *s);
nb_status nb_json_parse(const nb_source *s, const nb_record *rec, json_t **obj);
nb_status nb_csv_parse(const nb_source *s, const nb_record *rec, json_t **obj);

#endif
