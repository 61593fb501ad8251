// The details of an error, from google.rpc.Status.
#pragma once

#include <grpcpp/grpcpp.h>

#include <string>
#include <utility>
#include <vector>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

struct Refusal {
  std::string reason;
  std::vector<std::pair<std::string, std::string>> violations;  // field and description

  explicit Refusal(const grpc::Status& status) {
    google::rpc::Status details;
    details.ParseFromString(status.error_details());
    for (const auto& detail : details.details()) {
      google::rpc::ErrorInfo info;
      google::rpc::BadRequest bad;
      if (detail.UnpackTo(&info)) {
        reason = info.reason();
      } else if (detail.UnpackTo(&bad)) {
        for (const auto& one : bad.field_violations()) violations.emplace_back(one.field(), one.description());
      }
    }
  }
};
