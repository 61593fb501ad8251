#pragma once

#include "sonde/v1/inspection.grpc.pb.h"

// Prints requests and answers, one per line, for the tests that compare the bytes and numbers of all languages:
// CASE.request BASE64, CASE.NAME NUMBERS. Returns the exit status.
int Golden(sonde::v1::InspectionService::Stub& stub);
