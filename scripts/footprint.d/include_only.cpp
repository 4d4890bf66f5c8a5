#include <recops/attention/target_attention.hpp>
#include <recops/core/error.hpp>
#include <recops/core/fields.hpp>
#include <recops/core/matrix.hpp>
#include <recops/core/random.hpp>
#include <recops/core/views.hpp>
#include <recops/core/workspace.hpp>
