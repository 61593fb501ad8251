#pragma once

#include "sonde/v1/inspection.grpc.pb.h"

// Prints requests and answers for the tests that hold all languages to the same bytes and numbers, a line for each:
// CASE.request BASE64, CASE.NAME NUMBERS. Returns the exit status.
int Golden(sonde::v1::InspectionService::Stub& stub);
