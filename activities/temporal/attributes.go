// Package temporal has what relaypki needs of Temporal itself besides running
// workflows: search attributes and the schedule of the recurring verification.
package temporal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"

	"github.com/relaypki/relaypki/internal/failure"
	"github.com/relaypki/relaypki/internal/procedure"
)

// Activities are the activities on Temporal. They use the worker's own client.
type Activities struct {
	// TaskQueues are those of the clusters that other workers serve, by cluster.
	TaskQueues map[string]string
}

// Facts is what a workflow must know of its namespace before it writes
// anything to Temporal.
type Facts struct {
	// SearchAttributes says that all of ours are registered. To upsert one that
	// is not makes a workflow task fail for ever.
	SearchAttributes bool `json:"searchAttributes"`
	// TaskQueues are those of the clusters that other workers serve, by cluster.
	TaskQueues map[string]string `json:"taskQueues,omitempty"`
}

// DescribeTemporal looks at the namespace that the activity runs in (where it
// may not look, it answers that there are no search attributes) and at the task
// queues in the site file.
func (a *Activities) DescribeTemporal(ctx context.Context) (Facts, error) {
	missing, err := missingAttributes(ctx, activity.GetClient(ctx), activity.GetInfo(ctx).Namespace)
	if mayNot(err) {
		activity.GetLogger(ctx).Warn("search attributes are not used: Temporal does not say which are registered", "error", err)
		return Facts{TaskQueues: a.TaskQueues}, nil
	}
	if err != nil {
		return Facts{}, temporalError(err, "list the search attributes")
	}
	return Facts{SearchAttributes: len(missing) == 0, TaskQueues: a.TaskQueues}, nil
}

// RegisterAttributes registers those of our search attributes that the
// namespace lacks and returns their names. An error means that procedures run
// without them; it says what an administrator can do.
func RegisterAttributes(ctx context.Context, c client.Client, namespace string) ([]string, error) {
	missing, err := missingAttributes(ctx, c, namespace)
	if err == nil && len(missing) > 0 {
		_, err = c.OperatorService().AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{
			Namespace: namespace, SearchAttributes: missing,
		})
	}
	var exists *serviceerror.AlreadyExists
	if errors.As(err, &exists) { // another worker was quicker
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("search attributes could not be registered, so runs cannot be searched by mesh: %w. "+
			"An administrator can: temporal operator search-attribute create --namespace %s --type Keyword --name %s --name %s --name %s",
			err, namespace, procedure.AttributeMesh, procedure.AttributeCluster, procedure.AttributePhase)
	}
	return slices.Sorted(maps.Keys(missing)), nil
}

// missingAttributes are those of ours that are not registered. One that is
// registered with another type cannot be used either, nor can it be added.
func missingAttributes(ctx context.Context, c client.Client, namespace string) (map[string]enumspb.IndexedValueType, error) {
	have, err := c.OperatorService().ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: namespace})
	if err != nil {
		return nil, err
	}
	return missing(have.GetCustomAttributes()), nil
}

func missing(have map[string]enumspb.IndexedValueType) map[string]enumspb.IndexedValueType {
	lacking := map[string]enumspb.IndexedValueType{}
	for _, name := range []string{procedure.AttributeMesh, procedure.AttributeCluster, procedure.AttributePhase} {
		if have[name] != enumspb.INDEXED_VALUE_TYPE_KEYWORD {
			lacking[name] = enumspb.INDEXED_VALUE_TYPE_KEYWORD
		}
	}
	return lacking
}

// mayNot is true for a call that this server refuses or does not have.
func mayNot(err error) bool {
	var denied *serviceerror.PermissionDenied
	var absent *serviceerror.Unimplemented
	return errors.As(err, &denied) || errors.As(err, &absent)
}

// temporalError classifies an error of the Temporal server.
func temporalError(err error, doing string) error {
	var invalid *serviceerror.InvalidArgument
	switch {
	case mayNot(err):
		return failure.Permanent(failure.Denied, "Temporal refused to %s: %v. Give the worker's Temporal identity that right", doing, err)
	case errors.As(err, &invalid):
		return failure.Permanent(failure.InvalidInput, "Temporal cannot %s: %v", doing, err)
	default:
		return failure.Transient(failure.Unavailable, "Temporal could not %s: %v", doing, err)
	}
}
