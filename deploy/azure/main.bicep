// The storage account of one site: a container for everything, who may use it, from where.
//     az deployment group create -g GROUP -f deploy/azure/main.bicep -p accountName=NAME subnetIds='["…"]'
targetScope = 'resourceGroup'

@description('Name of the storage account: 3 to 24 of a-z 0-9, unique in the world.')
@minLength(3)
@maxLength(24)
param accountName string

@description('Where it stands.')
param location string = resourceGroup().location

@description('The one container of the site.')
param containerName string = 'holdfast'

@description('Copies of the data: Standard_ZRS keeps three in the zones of one region.')
@allowed(['Standard_LRS', 'Standard_ZRS', 'Standard_GRS', 'Standard_GZRS'])
param redundancy string = 'Standard_ZRS'

@description('Subnets of the process servers, with the service endpoint Microsoft.Storage.')
param subnetIds array = []

@description('Public addresses or ranges that may reach the account, such as an operator\'s.')
param allowedAddresses array = []

@description('Principals of further identities with the same rights, such as a virtual machine\'s own.')
param principalIds array = []

@description('Days in which the container can be brought back when somebody deleted it.')
@minValue(1)
@maxValue(365)
param softDeleteDays int = 7

@description('Days after which deltas that retention keeps move to the cool tier. 0: never.')
@minValue(0)
param coolAfterDays int = 0

resource account 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: accountName
  location: location
  kind: 'StorageV2'
  sku: {
    name: redundancy
  }
  properties: {
    accessTier: 'Hot'
    // Who may: identities with a role. No key, no anonymous reader, no signature made from a key.
    allowSharedKeyAccess: false
    allowBlobPublicAccess: false
    allowCrossTenantReplication: false
    defaultToOAuthAuthentication: true
    minimumTlsVersion: 'TLS1_2'
    supportsHttpsTrafficOnly: true
    publicNetworkAccess: 'Enabled'
    networkAcls: {
      defaultAction: 'Deny'
      bypass: 'None'
      virtualNetworkRules: [for subnet in subnetIds: {
        id: subnet
        action: 'Allow'
      }]
      ipRules: [for address in allowedAddresses: {
        value: address
        action: 'Allow'
      }]
    }
  }
}

resource blobs 'Microsoft.Storage/storageAccounts/blobServices@2023-05-01' = {
  parent: account
  name: 'default'
  properties: {
    // Versions and soft delete would keep every state of documents that are written again every few seconds. The log
    // is versioned by itself, and retention deletes what is not needed any more.
    isVersioningEnabled: false
    deleteRetentionPolicy: {
      enabled: false
    }
    containerDeleteRetentionPolicy: {
      enabled: true
      days: softDeleteDays
    }
  }
}

resource container 'Microsoft.Storage/storageAccounts/blobServices/containers@2023-05-01' = {
  parent: blobs
  name: containerName
  properties: {
    publicAccess: 'None'
  }
}

// Retention deletes what is not needed any more; a lifecycle rule must never do that. This one only moves old
// deltas, and uploads that were never committed are given up by Azure after a week by itself.
resource lifecycle 'Microsoft.Storage/storageAccounts/managementPolicies@2023-05-01' = if (coolAfterDays > 0) {
  parent: account
  name: 'default'
  properties: {
    policy: {
      rules: [
        {
          name: 'cool-deltas'
          type: 'Lifecycle'
          enabled: true
          definition: {
            filters: {
              blobTypes: ['blockBlob']
              prefixMatch: ['${containerName}/machines/']
            }
            actions: {
              baseBlob: {
                tierToCool: {
                  daysAfterModificationGreaterThan: coolAfterDays
                }
              }
            }
          }
        }
      ]
    }
  }
}

// What the code asks of the container, and nothing else: the table in deploy/README.md.
resource role 'Microsoft.Authorization/roleDefinitions@2022-04-01' = {
  name: guid(account.id, 'holdfast')
  properties: {
    roleName: 'Holdfast store (${accountName})'
    description: 'Read, write and delete blobs of one container: process server, applier, sidecar, recovery.'
    type: 'CustomRole'
    permissions: [
      {
        actions: []
        notActions: []
        dataActions: [
          'Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read'
          'Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write'
          'Microsoft.Storage/storageAccounts/blobServices/containers/blobs/delete'
        ]
        notDataActions: []
      }
    ]
    assignableScopes: [
      resourceGroup().id
    ]
  }
}

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: '${accountName}-holdfast'
  location: location
}

resource assignment 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: container
  name: guid(container.id, identity.id, role.id)
  properties: {
    roleDefinitionId: role.id
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
  }
}

resource assignments 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for principal in principalIds: {
  scope: container
  name: guid(container.id, principal, role.id)
  properties: {
    roleDefinitionId: role.id
    principalId: principal
    principalType: 'ServicePrincipal'
  }
}]

output store string = 'azure:${account.properties.primaryEndpoints.blob}${containerName}?auth=managed-identity&client-id=${identity.properties.clientId}'
output clientId string = identity.properties.clientId
output identityId string = identity.id
