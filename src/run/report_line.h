/* Lines of a report: a label, and text in 80 columns. */
#ifndef MGR_RUN_REPORT_LINE_H
#define MGR_RUN_REPORT_LINE_H

#include "mgr/err.h"

#define MGR_REPORT_LABEL 10
#define MGR_REPORT_WIDTH 79

/* Print "label     text" to stdout, broken at blanks and indented behind the label; a word that is
 * longer than a line stands alone. */
void mgr_report_line(const char *label, const char *fmt, ...) MGR_PRINTF(2, 3);

#endif
