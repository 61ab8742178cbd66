/* Python's C API for the few files that use it. */
#ifndef PACKHORSE_PYTHON_H
#define PACKHORSE_PYTHON_H

/* One build for every Python from 3.11 on; free-threaded builds have no limited API yet. */
#if !defined(Py_GIL_DISABLED) && !defined(Py_LIMITED_API)
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#endif
