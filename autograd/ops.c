#include "autograd/ops.h"

#include "core/status.h"

const nb_op *const nb_ops[] = {
#define OP(name) &nb_op_##name,
#include "autograd/ops.def"
#undef OP
};
const int nb_op_count = NB_LEN(nb_ops);
