// Numbers and tuples that Python passes: what is of another type raises a TypeError of one sentence.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "torch.h"

namespace normkit {

[[noreturn]] inline void refuse_argument(const char* name, const char* expected, nb::handle given) {
    raise(PyExc_TypeError, std::string("argument '") + name + "' must be " + expected + ", not " + class_name(given));
}

inline double number(nb::handle given, const char* name) {
    const double value = PyFloat_AsDouble(given.ptr());
    if (value == -1.0 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError)) nb::raise_python_error();
        PyErr_Clear();
        refuse_argument(name, "float", given);
    }
    return value;
}

inline int64_t whole(nb::handle given, const char* name) {
    const long long value = PyLong_AsLongLong(given.ptr());
    if (value == -1 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError)) nb::raise_python_error();
        PyErr_Clear();
        refuse_argument(name, "int", given);
    }
    return value;
}

inline bool flag(nb::handle given, const char* name) {
    if (given.ptr() != Py_True && given.ptr() != Py_False) refuse_argument(name, "bool", given);
    return given.ptr() == Py_True;
}

#ifdef Py_LIMITED_API  // the stable ABI has functions where a version's own headers look into the object
inline nb::handle item(nb::handle tuple, Py_ssize_t i) { return PyTuple_GetItem(tuple.ptr(), i); }
inline Py_ssize_t length(nb::handle tuple) { return PyTuple_Size(tuple.ptr()); }
#else
inline nb::handle item(nb::handle tuple, Py_ssize_t i) { return PyTuple_GET_ITEM(tuple.ptr(), i); }
inline Py_ssize_t length(nb::handle tuple) { return PyTuple_GET_SIZE(tuple.ptr()); }
#endif

// A tuple of at least so many entries, which `item` may read.
inline nb::handle entries(nb::handle given, Py_ssize_t count, const char* name) {
    if (!PyTuple_Check(given.ptr())) refuse_argument(name, "tuple", given);
    if (length(given) < count)
        raise(PyExc_ValueError, std::string("argument '") + name + "' must have " + std::to_string(count) +
                                    " entries, not " + std::to_string(length(given)));
    return given;
}

inline std::vector<int64_t> whole_numbers(nb::handle given, const char* name) {
    std::vector<int64_t> values;
    if (!PySequence_Check(given.ptr())) refuse_argument(name, "a sequence of int", given);
    for (nb::handle value : nb::borrow(given)) values.push_back(whole(value, name));
    return values;
}

}  // namespace normkit
